"""What is read from a compiled program's text, on a program small enough to count by hand."""

from emu_jax.train.planning.hlo import Exchange, read

# A loop of 5 rounds that gathers 4 kB and takes 100 cycles; an all-reduce beside it, in two fusions
# of one channel; cycles of what lies inside a fusion are the fusion's own.
PROGRAM = """HloModule jit_f, is_scheduled=true

%inside (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(8)} parameter(0)
  ROOT %n = f32[8]{0:T(8)} negate(%p), backend_config={"estimated_cycles":"7"}
}

%start (p.1: f32[256]) -> f32[256] {
  %p.1 = f32[256]{0} parameter(0)
  ROOT %r.1 = f32[256]{0:T(256)S(1)} all-reduce(%p.1), channel_id=2, to_apply=%sum
}

%end (p.2: f32[256]) -> f32[256] {
  %p.2 = f32[256]{0} parameter(0)
  ROOT %r.2 = f32[256]{0:T(256)} all-reduce(%p.2), channel_id=2, to_apply=%sum
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %g = bf16[2,1024]{1,0:T(8,128)(2,1)} all-gather(%s), channel_id=1, dimensions={0}
  %f = f32[8]{0:T(8)} fusion(%s), kind=kLoop, calls=%inside, {"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%s, %f)
}

%until (s.1: (s32[], f32[8])) -> pred[] {
  %s.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %l = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]{0}) while(%x), condition=%until, body=%body, backend_config={TRIPS}
  %q = f32[256]{0} fusion(%x), kind=kLoop, calls=%start, backend_config={"estimated_cycles":"10"}
  %z = f32[256]{0} fusion(%q), kind=kLoop, calls=%end, backend_config={"estimated_cycles":"20"}
  ROOT %o = f32[8]{0} copy(%x)
}
"""
FIVE = PROGRAM.replace("{TRIPS}", '{"known_trip_count":{"n":"5"}}')


def test_a_loop_counts_as_often_as_it_runs():
  found = read(FIVE)
  assert found.cycles == 5 * 100 + 10 + 20
  assert found.exchanges["all-gather"] == Exchange(count=5, bytes=5 * 2 * 1024 * 2)
  assert found.unknown_loops == 0


def test_cycles_of_the_matrix_units_are_told_from_the_rest():
  assert read(FIVE).products == 0
  found = read(FIVE.replace("negate(%p)", "convolution(%p, %p), dim_labels=bf_io->bf"))
  assert (found.cycles, found.products) == (530, 500)


def test_a_collective_in_pieces_is_one():
  assert read(FIVE).exchanges["all-reduce"] == Exchange(count=1, bytes=256 * 4)


def test_a_loop_of_unknown_length_is_told():
  found = read(PROGRAM.replace("{TRIPS}", "{}"))
  assert (found.cycles, found.unknown_loops) == (130, 1)


def test_a_condition_tells_how_often_its_loop_runs():
  condition = """  %n.1 = s32[]{:T(128)} constant(5)
  ROOT %l = pred[]{:T(512)} compare(%s.1, %n.1), direction=LT"""
  text = PROGRAM.replace("{TRIPS}", "{}").replace("  ROOT %l = pred[] constant(true)", condition)
  assert read(text) == read(FIVE)


def test_values_that_are_no_estimates_make_none():
  assert read(FIVE.replace('"10"', '"9223372036854775807"')).cycles is None
