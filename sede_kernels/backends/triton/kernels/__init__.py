"""The Triton kernels, one file an op; the host files of the parent package launch them."""
