"""What is kept of answers: responses and conversations, in one SQLite database."""
