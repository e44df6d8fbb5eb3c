"""OpenAI's dialect, as far as cortex reads or writes it itself."""
