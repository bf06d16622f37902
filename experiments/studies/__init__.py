"""The studies, a file each, in the order of the claims."""

from experiments.studies import (
  brightness,
  brightness_captions,
  brightness_exact,
  brightness_growth,
  convergence,
  factorized,
  frozen,
  guidance,
  high_motion,
  identity,
  interpolation,
  multistage,
  stable_video,
)

STUDIES = {
  module.STUDY.name: module.STUDY
  for module in (
    identity,
    convergence,
    brightness_exact,
    brightness,
    brightness_captions,
    brightness_growth,
    factorized,
    guidance,
    high_motion,
    multistage,
    interpolation,
    frozen,
    stable_video,
  )
}
