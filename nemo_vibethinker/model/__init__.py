"""The Qwen2 architecture as a Megatron-Core model, and its Hugging Face form."""
