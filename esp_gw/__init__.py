"""Userspace IPsec ESP gateway: carries IP packets between a TUN device and ESP sockets."""

__version__ = "0.1.0"
