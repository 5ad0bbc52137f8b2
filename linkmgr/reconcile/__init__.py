"""Loops and looks that compare what is with what was meant. Imports `inventory` and below."""
