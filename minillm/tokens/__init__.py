"""Stage 2: text becomes token ids on the CPU, and ids go through a DRAM staging buffer to HBM."""
