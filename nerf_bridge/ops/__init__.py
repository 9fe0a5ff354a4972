"""The kernels' Python side: checks, autograd functions, torch twins, building and loading."""
