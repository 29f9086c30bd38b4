"""Data of few-shot segmentation: raw download -> lists -> episodes -> episode batch."""
