"""The small library behind the course: grading, notebooks, questions, quizzes.

It never hides an API that the course teaches: solutions call TensorRT and ONNX Runtime directly.
"""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
