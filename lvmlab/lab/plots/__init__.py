"""Every figure of the lab. Figures have a white ground of their own, so that they read the same in a dark
theme.
"""
