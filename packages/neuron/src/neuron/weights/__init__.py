"""Where models come from, how large they are, and what their files say of them."""
