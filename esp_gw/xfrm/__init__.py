"""The kernel's own ESP, as `ip xfrm` prints it and takes it: moving SAs here, and to the peer."""
