"""What a model costs on a GPU: parameters, FLOPs, memory, layouts. Arithmetic only: no torch, no Megatron."""
