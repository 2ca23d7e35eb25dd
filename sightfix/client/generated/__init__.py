"""The synchronous client, written by make_synchronous.py."""
