"""Lair Chat: a federated Matrix homeserver."""
