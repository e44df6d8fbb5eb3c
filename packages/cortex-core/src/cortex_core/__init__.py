"""The vocabulary and the decisions that every part of cortex shares.

Everything here is pure but the room `server`: values in, a value out.
"""
