"""Moments in continuous time: linear flows and their integration."""
