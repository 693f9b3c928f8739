"""Requests as the service understands them."""
