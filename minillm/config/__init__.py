"""Settings, checked when they are made and frozen from then on.

model.py        what a model is: ModelConfig
huggingface.py  how config.json says it, and how the families differ
shapes.py       the config.json of a few real models
settings.py     how the engine runs it, by whom, how words are chosen: EngineConfig, ParallelConfig,
                SamplingParams
rules.py        what a setting must satisfy, and how an error says it
"""

from minillm.config.model import ModelConfig, RopeScaling
from minillm.config.rules import DTYPES
from minillm.config.settings import EngineConfig, ParallelConfig, SamplingParams

__all__ = [
    "DTYPES", "EngineConfig", "ModelConfig", "ParallelConfig", "RopeScaling", "SamplingParams",
]  # fmt: skip
