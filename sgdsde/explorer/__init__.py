"""The explorer: a page whose sliders move predicted losses; served on this machine, or exported as one file."""

from sgdsde.explorer.curves import Curves, predicted_curves
from sgdsde.explorer.export import export_page
from sgdsde.explorer.server import Server, loopback_address

__all__ = ["Curves", "Server", "export_page", "loopback_address", "predicted_curves"]
