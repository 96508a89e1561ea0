"""Kernel ESP in the syntax of `ip xfrm`: import of the kernel's SAs, export to a kernel peer."""
