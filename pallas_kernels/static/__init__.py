"""What the TPU compiler says of each kernel, without a chip: see docs/kernels.md, and run `launch.bench`."""
