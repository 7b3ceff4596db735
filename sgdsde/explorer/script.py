"""What the page does in the browser when a slider moves: it looks the setting up and redraws."""

UPDATE = """
const l = rates.indexOf(lr.value), b = sizes.indexOf(batch.value);
const m = momentum.active, s = sampling.active;
const n_s = samplings.length, n_b = sizes.length, n_l = rates.length;
const row = nearest[((m * n_s + s) * n_b + b) * n_l + l];
const limit = limits[(m * n_s + s) * n_b + b];
const T = steps.length, block = 3 * T, all = sides.length * block;

// The stability map: the limit over batch sizes for these words, and the point that is chosen.
const line = Array.from(limits.slice((m * n_s + s) * n_b, (m * n_s + s + 1) * n_b));
map_limit.data = {size: numbers, limit: line, top: line.map(() => ceiling)};
map_point.data = {size: [numbers[b]], lr: [rate_numbers[l]], color: [row < 0 ? "#D55E00" : "#000000"]};

const shown = row < 0 ? null : settings[row];
map_drawn.data = {size: shown ? [Number(shown.batch_size)] : [], lr: shown ? [Number(shown.lr)] : []};
sides.forEach((side, k) => {
  const data = {step: Array.from(steps)};
  ["mean", "low", "high"].forEach((part, p) => {
    const start = row * all + k * block + p * T;
    data[part] = row < 0 ? new Array(T).fill(NaN) : Array.from(losses.slice(start, start + T));
  });
  sources[k].data = data;
});
measured_sources.forEach((source) => {
  const key = source.tags[0];
  const here = shown !== null && key === shown.key;
  measured_glyphs.forEach((glyph) => { if (glyph.data_source.id === source.id) glyph.visible = here; });
});

const asked = `lr = ${lr.value}, batch size ${batch.value}, momentum ${momentum.labels[m]}, ${sampling.labels[s]}`;
if (row < 0) {
  const why = rate_numbers[l] < limit
    ? "Nothing near it was predicted."
    : `Outside the stable range: the largest learning rate that is stable in mean square is ${limit.toPrecision(4)}. ` +
      "Beyond it the expected loss grows without bound, so no curve is drawn.";
  message.text = `<b>${asked}</b><br>${why}`;
} else {
  const near = shown.lr === lr.value && shown.batch_size === batch.value
    ? "" : `<br><b>Drawn is the nearest setting that was predicted: lr = ${shown.lr}, batch size ` +
      `${shown.batch_size}</b>.`;
  const last = sides.map((side, k) => `${side} ${losses[row * all + k * block + T - 1].toPrecision(4)}`).join(", ");
  message.text = `<b>${asked}</b>: ${(100 * rate_numbers[l] / limit).toFixed(0)} % of the limit ` +
    `${limit.toPrecision(4)}.${near}<br>Predicted mean loss after ${steps[T - 1]} steps: ${last}.` +
    `<br>Predicted by ${shown.dynamics}.`;
}
"""
"""Arguments: the widgets, the grid's words, and what ``page.py`` hands over under these names."""
