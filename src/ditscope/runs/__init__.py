"""The run directory, the waist between making and reading: written and read without torch."""
