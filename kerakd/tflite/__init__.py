"""Model -> bytes, and the proof."""

from kerakd.tflite.codes import codes
from kerakd.tflite.convert import to_tflite
from kerakd.tflite.emulator import emulate
from kerakd.tflite.flatfile import unpack
from kerakd.tflite.lint import Finding, lint
from kerakd.tflite.proof import Proof, Settling, settling, verify
from kerakd.tflite.reference import settle, snap

__all__ = ["Finding", "Proof", "Settling", "codes", "emulate", "lint", "settle", "settling", "snap", "to_tflite", "unpack", "verify"]
