"""Records, the generated world, its tokenizer, readers, decontamination and packing."""
