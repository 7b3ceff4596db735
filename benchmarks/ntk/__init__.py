"""What the kernel's benchmark consists of: cases, contestants, a reference, one process per measurement, arithmetic."""
