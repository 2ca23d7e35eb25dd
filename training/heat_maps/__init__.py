"""Where the descriptor looks: heat maps of photos and pairs, and how condensed they are."""

from training.heat_maps.condensation import Condensation, condensation, energy_share
from training.heat_maps.maps import HeatMaps, activation_maps, heat_maps, match_maps

__all__ = [
    "Condensation",
    "HeatMaps",
    "activation_maps",
    "condensation",
    "energy_share",
    "heat_maps",
    "match_maps",
]
