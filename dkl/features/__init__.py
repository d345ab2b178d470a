"""Distillation objectives that compare feature maps, one file each: the loss, and what is learnt beside it.

Shapes: B batch, C channels, H, W the map. Losses are scalars in float32 or finer. Which maps a network offers is
its own matter; channels and sizes are found by a probe, never configured for a pair of networks.
"""
