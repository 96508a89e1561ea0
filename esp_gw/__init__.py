"""IPsec ESP gateway in userspace: packets between a TUN device and ESP on real sockets."""

__version__ = "0.1.0"
