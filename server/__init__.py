"""HTTP to text to tokens: the OpenAI API, metrics and the offline ``LLM``."""
