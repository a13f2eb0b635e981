"""The Triton kernels, one file for each op; the host files of the parent package launch them."""
