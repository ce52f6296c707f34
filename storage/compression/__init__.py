"""The dictionaries that stored events are compressed with, and the program that made them."""
