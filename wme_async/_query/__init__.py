"""Queries: fields and filters, checked against the models and against the rules of their back end."""
