"""What an answer's text is made of: reasoning, content, tool calls."""
