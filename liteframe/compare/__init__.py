"""The paper's comparison on a user's own Video LLM: accuracy and time of encoders and reducers, at equal cost."""
