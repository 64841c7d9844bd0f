"""Named tensors in files that nobody trusts: safetensors, pickles behind a guard, checks, writing."""
