"""AMFormer."""
