"""The generated tiny world: mathematics in four domains and small Python tasks, nothing downloaded."""

from nemo_vibethinker.data.world.generate import FAMILIES, World, WorldSizes, generate_world

__all__ = ["FAMILIES", "World", "WorldSizes", "generate_world"]
