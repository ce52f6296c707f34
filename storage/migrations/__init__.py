"""Numbered SQL files, applied in order by storage.migrate; only ever added to."""
