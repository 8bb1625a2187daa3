"""What runs one converted model: inputs in, outputs out. Nothing above this folder knows which runtime is below."""
