"""The commands of lair-chat: one module for each group, which adds its parsers and what they run."""
