"""Answers of a given form: from the API's fields to grammars."""
