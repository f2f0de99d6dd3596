// Draws both screens: in JupyterLab, where `model` is a widget's, and in pages, where it is a `Page`.
const PATIENCE = 700; // milliseconds until the screen says that it waits for the kernel
const PACE = 700; // milliseconds between two strengths
const MOST = 40; // unpacked pieces in memory
const ATTACKED = "attacked";
const SHAPES = new Set(["svg", "g", "line", "polyline", "polygon", "text"]);
const titled = (method) => (method === ATTACKED ? "no filter" : method);
const short = (label) => label.split(" ")[0];
const number = (value) => (Math.abs(value) < 0.095 && value ? value.toPrecision(2) : value.toFixed(2)).replace("-", "−");

function make(tag, attributes = {}, ...children) {
  const element = SHAPES.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    typeof value === "function" ? element.addEventListener(name, value) : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A model that no kernel stands behind.
class Page {
  constructor(state) { this.state = state; this.calls = {}; }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; this.calls[`change:${name}`]?.forEach((call) => call()); }
  on(name, call) { (this.calls[name] ??= []).push(call); }
  save_changes() {}
}

const toBytes = (data) => typeof data === "string" ? Uint8Array.from(atob(data), (each) => each.charCodeAt(0))
  : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

// What `pack` in explorer.py has packed: for each strength the image, its maps, and the grid's kernels.
// `before` gives the image at a strength of which it holds the difference.
async function unpack({ read, data }, before, { size: [height, width], step, eps }) {
  const stream = new Blob([toBytes(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let start = 0;
  const take = (length, basis) => {
    const part = bytes.subarray(start, start += length * eps.length);
    if (basis) eps.forEach((_, strength) => basis(strength).forEach((byte, i) => { part[strength * length + i] += byte; }));
    else for (let i = length; i < part.length; i++) part[i] += part[i - length];
    return (strength) => part.subarray(strength * length, (strength + 1) * length);
  };
  const image = take(3 * height * width, before), maps = read.limits.map(() => take(height * width));
  const columns = Math.ceil(width / step), places = Math.ceil(height / step) * columns;
  const taps = (bytes.length - start) / (eps.length * places * read.scales.length);
  const filters = read.scales.map((scale) => {
    const part = take(places * taps);
    return (strength, row, column) => {
      const place = (row / step) * columns + column / step;
      const roots = new Int8Array(part(strength).slice(place * taps, (place + 1) * taps).buffer);
      return Array.from(roots, (root) => scale * Math.sign(root) * (root / 127) ** 2);
    };
  });
  return { image, maps, filters };
}

// Bytes in colours or in one of the colour maps, of which a value is `low` at 0 and `high` at 255.
function paint(canvas, { bytes, channels, width, height, place }, colours) {
  Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = channels === 3 ? bytes[3 * i + c] : colours[3 * place(bytes[i]) + c];
  for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = 255;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function bar(colours, low, high) {
  const stops = Array.from({ length: 9 }, (_, i) => `rgb(${colours.subarray(3 * Math.round(i * 31.875)).slice(0, 3)})`);
  return [make("span", {}, low), make("i", { style: `background: linear-gradient(90deg, ${stops})` }), make("span", {}, high)];
}

function explore(model, el) {
  const fixed = model.get("fixed"), [height, width] = fixed.size, live = !(model instanceof Page);
  const colours = Object.fromEntries(Object.entries(fixed.colours).map(([name, data]) => [name, toBytes(data)]));
  const nameOf = (label) => fixed.classes[label] ?? String(label);
  const CHOICE = ["image", "strength", "method", "row", "column"]; // kept here, too, for a model may end with its kernel
  const chosen = Object.fromEntries(CHOICE.map((name) => [name, model.get(name)])), choice = () => ({ ...chosen });
  const shownImage = (image) => model.get("images").find((each) => each.number === image);
  const pieces = new Map(), answers = new Map(), open = new Set();
  let asks = 0, attacking = false, ended = false, own = true, sweep = 0, enlarged = "", failure = "", refusal = "", greeted = false;
  let arriving = live && !(model.get("progress").done > 1); // shown for the first time

  // -- the kernel: asked for what no piece holds -------------------------------------------------

  function ask(what, options = {}) {
    if (!live || ended) return;
    open.add(asks += 1);
    model.send({ ask: what, count: asks, ...options });
    setTimeout(state, PATIENCE + 50, open.waits ??= Date.now());
  }
  function hear(message, buffers = []) {
    if (message.piece) {
      pieces.set(message.piece.key.join("/"), { read: message.piece, data: buffers[0] });
      answers.clear();
      draw();
    } else if (message.changed !== undefined) { // by another attack: all of the image is sent again
      for (const key of [...pieces.keys()]) if (key.startsWith(`${message.changed}/`)) pieces.set(key, { asked: true });
    } else if (message.kernels) {
      const { ask: _, count, ...place } = message.kernels;
      answers.set(JSON.stringify(place), buffers.map((each) => [...new Float32Array(toBytes(each).slice().buffer)]));
      draw();
    } else if (message.heard) {
      open.delete(message.heard);
      open.waits = open.size ? Date.now() : undefined;
      refusal = message.error;
      for (const [key, taps] of answers) if (!taps && refusal) answers.set(key, []);
      if (refusal || !greeted) { greeted = true; draw(); }
    } else if (message.attacked !== undefined) attacking = false;
    state();
  }
  function piece(image, name) {
    const key = `${image}/${name}`, found = pieces.get(key);
    if (found?.views) return found;
    if (found?.data) {
      const base = name === ATTACKED ? { views: { image: () => toBytes(shownImage(image).pixels) } } : piece(image, ATTACKED);
      if (base) found.unpacking ??= unpack(found, base.views.image, fixed).then((views) => {
        found.views = views;
        const unpacked = [...pieces.values()].filter((each) => each.views && each !== found);
        if (unpacked.length >= MOST) unpacked[0].views = unpacked[0].unpacking = undefined;
        draw();
      });
    }
    else if (greeted && !found?.asked) {
      pieces.set(key, { ...found, asked: true });
      ask("piece", { image, method: name });
    }
  }
  function kernelsAt(found, { image, strength, method, row, column }) {
    if (row % fixed.step === 0 && column % fixed.step === 0) return found.views.filters.map((filter) => filter(strength, row, column));
    const place = { image, strength, method, row, column }, key = JSON.stringify(place);
    if (!answers.has(key)) { answers.set(key, undefined); ask("kernels", place); }
    return answers.get(key);
  }

  // -- controls ----------------------------------------------------------------------------------

  function choose(changes) {
    Object.assign(chosen, changes);
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
    draw();
  }
  const strip = make("div", { class: "nbs-strip", role: "group", "aria-label": "images" });
  const slider = make("input", { type: "range", min: 0, max: fixed.eps.length - 1, "aria-label": "attack strength ε",
    input: () => { pause(); choose({ strength: Number(slider.value) }); } });
  const strength = make("data"), play = make("button", { type: "button", "aria-label": "play: sweep ε", click: () => (sweep ? pause() : sweepOn()) }, "▶");
  const method = make("select", { "aria-label": "method", change: () => choose({ method: method.value }) },
    ...Object.keys(fixed.methods).map((name) => make("option", { value: name }, titled(name))));
  const again = make("button", { type: "button", title: "PGD from another random start", click: () => {
    if (attacking || ended) return;
    attacking = true;
    ask("attack", choice());
    state();
  } });
  const upload = make("span"), go = make("button", { type: "button", click: () => ask(go.textContent) });
  function sweepOn() {
    sweep = setInterval(() => choose({ strength: (chosen.strength + 1) % fixed.eps.length }), PACE);
    play.textContent = "⏸";
    play.setAttribute("aria-label", "pause");
  }
  function pause() {
    clearInterval(sweep);
    sweep = 0;
    play.textContent = "▶";
    play.setAttribute("aria-label", "play: sweep ε");
  }

  // -- pictures ----------------------------------------------------------------------------------

  const slots = {}, pictures = make("div", { class: "nbs-pictures" });
  const most = Math.max(...Object.values(fixed.methods).map(({ maps }) => maps.length));
  for (const name of ["clean", "attacked", "perturbation", "denoised", ...Array.from({ length: most }, (_, i) => `map ${i}`)]) {
    const canvas = make("canvas"), mark = make("i", { class: "nbs-mark" }), caption = make("span"), scale = make("div", { class: "nbs-scale" }), value = make("data");
    const pad = make("div", { class: "nbs-pad", tabindex: 0, role: "application", click: pick, keydown: walk, dblclick: () => enlarge(name),
      pointermove: (event) => hover(under(event)), pointerleave: () => hover() }, canvas, mark);
    const wide = make("button", { type: "button", title: "enlarge", click: () => enlarge(name) }, "⤢");
    const figure = make("figure", {}, pad, make("figcaption", {}, caption, wide), value, scale);
    pictures.append(figure);
    slots[name] = { figure, pad, canvas, mark, caption, scale, wide, value };
  }
  function under(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const place = (offset, length, many) => Math.min(many - 1, Math.max(0, Math.floor((offset / length) * many)));
    return [place(event.clientY - box.top, box.height, height), place(event.clientX - box.left, box.width, width)];
  }
  function snap(value, many) { // without a kernel only the grid has kernels
    const step = live && !ended ? 1 : fixed.step, last = Math.floor((many - 1) / step) * step;
    return Math.min(last, Math.max(0, Math.round(value / step) * step));
  }
  function pick(event) {
    const [row, column] = under(event);
    choose({ row: snap(row, height), column: snap(column, width) });
  }
  function walk(event) {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const [down, right] = way.map((each) => each * (live && !ended ? 1 : fixed.step));
    choose({ row: snap(chosen.row + down, height), column: snap(chosen.column + right, width) });
  }
  const values = make("data", { class: "nbs-values" });
  function valueAt({ bytes, channels, low, high, unit }, row, column) {
    const i = row * width + column;
    if (channels === 3) return [0, 1, 2].map((c) => (bytes[3 * i + c] / 255).toFixed(2).replace(/^0/, "")).join(" ");
    return number(low + ((high - low) * bytes[i]) / 255) + unit;
  }
  function hover([row, column] = [chosen.row, chosen.column]) {
    values.textContent = `values of pixel (${row}, ${column})`;
    for (const { value, drawn } of Object.values(slots)) value.textContent = drawn ? valueAt(drawn, row, column) : "";
  }

  // -- words, kernels, curves --------------------------------------------------------------------

  const verdict = make("p", { class: "nbs-verdict", role: "status", "aria-live": "polite" });
  const words = ["attacked", "denoised"].map((name) => {
    const list = make("div", { "aria-label": `predictions for the ${name} image` }), quality = make("small"), title = make("h4");
    return { list, quality, title, box: make("div", { class: "nbs-words" }, title, list, quality) };
  });
  const pixel = make("h4"), kernels = make("div", { class: "nbs-kernels" }), kernelScale = make("div", { class: "nbs-scale" });
  const owned = make("select", { "aria-label": "scale of the kernels", change: () => { own = owned.value === "own"; draw(); } },
    make("option", { value: "own" }, "own scale"), make("option", { value: "common" }, "common scale"));
  const curves = make("svg", { role: "img", pointermove: follow, pointerleave: () => (point.textContent = chosenPoint()) });
  const point = make("data"), legend = make("div", { class: "nbs-legend" }), count = make("h4");

  function rank(list, top, truth) {
    list.replaceChildren(...top.map(([label, probability]) => make("div", label === truth ? { class: "true" } : {},
      make("span", { title: nameOf(label) }, nameOf(label) + (label === truth ? " ✓" : "")),
      make("i", {}, make("b", { style: `width: ${100 * probability}%` })), probability.toFixed(2))));
  }
  function showKernels(found, chosen) {
    const { filters } = fixed.methods[chosen.method], taps = filters.length ? kernelsAt(found, chosen) : [];
    pixel.textContent = filters.length ? `kernels of pixel (${chosen.row}, ${chosen.column})` : "kernels";
    owned.hidden = kernelScale.hidden = !taps?.length;
    if (!taps?.length) return kernels.replaceChildren(!taps ? "waiting for the kernel of this notebook …" : filters.length ? "none came: see below" : `${titled(chosen.method)} predicts no kernels`);
    const most = own ? Math.max(...taps.flat().map(Math.abs), 1e-6) : 1.2;
    kernels.replaceChildren(...taps.map((filter, part) => {
      const size = Math.sqrt(filter.length / 3);
      const drawn = ["red", "green", "blue"].map((channel, c) => {
        const kernel = filter.slice(c * size ** 2, (c + 1) * size ** 2), sum = number(kernel.reduce((a, b) => a + b));
        const canvas = make("canvas", { role: "img", "aria-label": `kernel of the ${channel} channel, sum of taps ${sum}`,
          pointermove: (event) => {
            const box = canvas.getBoundingClientRect(), at = (offset, length) => Math.min(size - 1, Math.max(0, Math.floor((offset / length) * size)));
            const [row, column] = [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
            values.textContent = `${filters[part]} ${channel} tap (${row - (size >> 1)}, ${column - (size >> 1)})  ${kernel[row * size + column].toFixed(3)}`;
          }, pointerleave: () => hover() });
        const place = (value) => Math.min(255, Math.max(0, Math.round(127.5 + (127.5 * value) / most)));
        paint(canvas, { bytes: kernel, channels: 1, width: size, height: size, place }, colours.RdBu_r);
        return make("figure", {}, canvas, make("figcaption", {}, `Σ ${sum}`));
      });
      return make("div", {}, make("span", {}, filters[part]), ...drawn);
    }));
    kernelScale.replaceChildren(...bar(colours.RdBu_r, number(-most), number(most)));
  }

  const right = (image, method, strength) => pieces.get(`${image}/${method}`)?.read?.top[strength][0][0] === shownImage(image)?.label;
  function accuracies() {
    const every = model.get("images").filter((each) => !each.own).map((each) => each.number);
    return Object.keys(fixed.methods).flatMap((name) => {
      const there = every.filter((image) => pieces.get(`${image}/${name}`)?.read);
      const share = (_, at) => there.filter((image) => right(image, name, at)).length / there.length;
      return there.length ? [{ name, images: there.length, values: fixed.eps.map(share) }] : [];
    });
  }
  let lines = [], frame = {};
  const words_of = ({ name, values }, at) => `${titled(name)}: ${values[at].toFixed(2)} at ε = ${short(fixed.eps[at])}`;
  function chosenPoint() {
    const line = lines.find(({ name }) => name === chosen.method);
    return line ? words_of(line, chosen.strength) : "";
  }
  function follow(event) {
    const box = curves.getBoundingClientRect(), { x, y } = frame, last = fixed.eps.length - 1;
    const at = Math.min(last, Math.max(0, Math.round(((event.clientX - box.left - x(0)) / (x(last) - x(0))) * last)));
    const far = ({ values }) => Math.abs(y(values[at]) - (event.clientY - box.top));
    if (lines.length) point.textContent = words_of(lines.reduce((a, b) => (far(b) < far(a) ? b : a)), at);
  }
  function plot() {
    const wide = Math.max(200, curves.clientWidth || 300), tall = 150, last = fixed.eps.length - 1, now = chosen.strength;
    const x = (at) => 34 + ((wide - 54) * at) / last, y = (value) => 126 - 116 * value;
    const part = [];
    frame = { x, y };
    lines = accuracies();
    for (const value of [0, 0.5, 1]) part.push(make("line", { class: "axis", x1: x(0), x2: x(last), y1: y(value), y2: y(value) }),
      make("text", { x: 28, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
    const every = Math.ceil((last * 36) / (x(last) - x(0)));
    fixed.eps.forEach((label, at) => at % every || part.push(make("text", { x: x(at), y: 143, "text-anchor": "middle" }, short(label))));
    part.push(make("line", { class: "axis now", x1: x(now), x2: x(now), y1: y(1), y2: y(0) }));
    const curve = (name, points) => {
      const { colour, dashes, marker } = fixed.methods[name], size = name === chosen.method ? 4.5 : 3;
      return make("g", { class: name === chosen.method ? "curve chosen" : "curve", style: name === ATTACKED ? "" : `--colour: ${colour}` },
        make("polyline", { points: points.join(" "), "stroke-dasharray": dashes }),
        ...points.map((point) => make("polygon", { points: marker, transform: `translate(${point}) scale(${size})` })));
    };
    for (const { name, values } of lines.toSorted((a, b) => (a.name === chosen.method) - (b.name === chosen.method)))
      part.push(curve(name, values.map((value, at) => `${x(at)},${y(value)}`)));
    curves.setAttribute("viewBox", `0 0 ${wide} ${tall}`);
    curves.replaceChildren(...part);
    legend.replaceChildren(...lines.map(({ name }) => make("span", name === chosen.method ? { class: "chosen" } : {},
      make("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" }, curve(name, ["4,6", "26,6"])), titled(name))));
    const numbers = lines.map((line) => line.images), fewest = Math.min(...numbers), most = Math.max(...numbers);
    count.textContent = lines.length ? `accuracy on ${fewest < most ? `${fewest} to ${most}` : most} image${most === 1 ? "" : "s"}` : "accuracy";
    point.textContent = chosenPoint();
    curves.setAttribute("aria-label", `accuracy over ε; ${point.textContent}`);
  }

  // -- a larger picture --------------------------------------------------------------------------

  const large = make("canvas"), largeMark = make("i", { class: "nbs-mark" }), largeTitle = make("b"), largeValues = make("data");
  const largePad = make("div", { class: "nbs-pad", tabindex: 0, role: "application", click: pick, keydown: walk, pointermove: (event) => {
    const [row, column] = under(event);
    largeValues.textContent = `(${row}, ${column})  ${valueAt(slots[enlarged].drawn, row, column)}`;
  } }, large, largeMark);
  const dialog = make("dialog", { class: "nbs-large", close: () => { enlarged = ""; } }, make("div", {}, largeTitle, make("span"),
    make("button", { type: "button", click: save }, "save as PNG"), make("button", { type: "button", click: () => dialog.close() }, "close")), largePad, largeValues);
  function enlarge(name) {
    if (!slots[name].drawn) return;
    enlarged = name;
    dialog.showModal();
    draw();
  }
  function save() {
    const { canvas, drawn } = slots[enlarged], times = Math.ceil(512 / width), copy = make("canvas");
    Object.assign(copy, { width: times * width, height: times * height });
    const context = copy.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, 0, 0, copy.width, copy.height);
    copy.toBlob((blob) => {
      const { image, strength: at } = choice(), href = URL.createObjectURL(blob);
      make("a", { href, download: `${drawn.name}, image ${image}, ε ${short(fixed.eps[at]).replace("/", "÷")}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 1000);
    });
  }

  // -- everything together -----------------------------------------------------------------------

  function draw() {
    try {
      failure = "";
      show();
    } catch (error) { // no half of a screen
      failure = `${error}: choose something else, or run this cell again`;
      verdict.textContent = "";
      for (const { figure, canvas } of Object.values(slots)) { figure.classList.add("empty"); canvas.width = 1; }
    }
    state();
  }
  function show() {
    const { image, strength: at, method: name, row, column } = chosen;
    const shown = shownImage(image), base = piece(image, ATTACKED), found = piece(image, name);
    const ready = base && found, drawn = {}, { maps } = fixed.methods[name];
    const picture = (label, bytes) => ({ name: label, bytes, channels: 3, width, height });
    const map = (label, bytes, [low, high], [from, to], colour, unit = "") => ({ name: label, bytes, channels: 1, width, height, low, high, unit, colour, ends: [from, to],
      place: (byte) => Math.min(255, Math.max(0, Math.round((255 * (low + ((high - low) * byte) / 255 - from)) / Math.max(to - from, 1e-12)))) });
    if (shown) drawn.clean = picture("clean", toBytes(shown.pixels));
    if (ready) {
      drawn.attacked = picture("attacked", base.views.image(at));
      drawn.perturbation = map("perturbation", base.views.maps[0](at), base.read.limits[0], [-1, 1], "RdBu_r", " ε");
      drawn.denoised = picture("denoised", found.views.image(at));
      const every = [...pieces.values()].flatMap(({ read }) => (read?.key[1] === name ? read.limits.filter((_, i) => maps[i]?.[0] === "U") : []));
      const common = [Math.min(...every.map(([low]) => low)), Math.max(...every.map(([, high]) => high))]; // all of a method's U
      if (name !== ATTACKED) maps.forEach((label, i) => {
        const limits = found.read.limits[i], isU = label[0] === "U";
        drawn[`map ${i}`] = map(label, found.views.maps[i](at), limits, isU ? common : limits, isU ? "viridis" : "cividis");
      });
    }
    for (const [slot, each] of Object.entries(slots)) {
      each.drawn = drawn[slot];
      each.figure.classList.toggle("empty", !each.drawn);
      each.caption.textContent = each.drawn?.name ?? (slot.startsWith("map") ? "no map" : slot);
      each.caption.title = { W: "W, the share of the filter sl", U: "uncertainty map", p: "mean over RGB, from −ε to ε" }[each.caption.textContent[0]] ?? "";
      each.mark.style.cssText = `left: ${(100 * column) / width}%; top: ${(100 * row) / height}%; width: ${100 / width}%; height: ${100 / height}%`;
      each.pad.setAttribute("aria-label", `${each.caption.textContent} image; a click or the arrow keys choose the pixel whose kernels are shown`);
      each.wide.setAttribute("aria-label", `enlarge ${each.caption.textContent}`);
      if (!each.drawn) { each.canvas.width = each.canvas.height = 1; each.scale.replaceChildren(); continue; }
      paint(each.canvas, each.drawn, colours[each.drawn.colour]);
      const [from, to] = each.drawn.ends ?? [];
      each.scale.replaceChildren(...(each.drawn.colour ? bar(colours[each.drawn.colour], ...(each.drawn.unit ? ["−ε", "ε"] : [number(from), number(to)])) : []));
    }
    const truth = shown?.label, say = (title, label) => make("span", { class: label === truth ? "right" : "wrong" }, `${title}: ${nameOf(label)} ${label === truth ? "✓" : "✗"}`);
    const line = ready ? [`${shown.own ? "class before the attack" : "true class"}: ${nameOf(truth)}`, say(`attacked, ε = ${short(fixed.eps[at])}`, base.read.top[at][0][0]), say(titled(name), found.read.top[at][0][0])] : ["not computed yet …"];
    const text = line.map((each) => each.textContent ?? each).join(" · ");
    if (verdict.textContent !== text) verdict.replaceChildren(...line.flatMap((each, i) => (i ? [" · ", each] : [each])));
    words.forEach(({ list, quality, title }, i) => {
      const { read } = (i ? found : base) ?? {};
      title.textContent = i ? titled(name) : "attacked";
      if (!ready) return [list, quality].forEach((each) => each.replaceChildren());
      rank(list, read.top[at], truth);
      quality.textContent = `PSNR ${read.psnr[at]?.toFixed(1) ?? "∞"} dB, SSIM ${read.ssim[at].toFixed(3)}`;
    });
    if (ready && arriving) { // "Run all" scrolls to the last cell: an explorer in the first code cell brings the reader back
      arriving = false;
      if (root.closest(".jp-Notebook")?.querySelector(".jp-CodeCell")?.contains(root)) root.scrollIntoView({ block: "nearest" });
    }
    if (ready) showKernels(found, chosen);
    else { kernels.replaceChildren(); owned.hidden = kernelScale.hidden = true; }
    if (enlarged && slots[enlarged].drawn) {
      const each = slots[enlarged], times = Math.max(1, Math.floor(Math.min(innerWidth - 60, innerHeight - 130, 640) / Math.max(width, height)));
      paint(large, each.drawn, colours[each.drawn.colour]);
      largePad.style.width = `${times * width}px`;
      largeMark.style.cssText = each.mark.style.cssText;
      largePad.setAttribute("aria-label", `${each.drawn.name}, enlarged`);
      largeTitle.textContent = `${each.drawn.name} · ${verdict.textContent}`;
    } else if (enlarged) dialog.close();
    hover();
    plot();
    controls();
  }
  function controls() {
    const { image, strength: at, method: name } = choice();
    if (strip.children.length !== model.get("images").length) strip.replaceChildren(...model.get("images").map((each) => {
      const canvas = make("canvas");
      paint(canvas, { bytes: toBytes(each.pixels), channels: 3, width, height });
      return make("button", { type: "button", click: () => choose({ image: each.number }) }, canvas, make("span"));
    }));
    [...strip.children].forEach((button, i) => {
      const { number: each, label, own: mine } = model.get("images")[i];
      const there = [ATTACKED, name].every((which) => pieces.get(`${each}/${which}`)?.read);
      const [before, after] = [right(each, ATTACKED, at), right(each, name, at)];
      const [mark, words] = !there ? ["…", "not computed yet"] : before && after ? ["✓", "right"] : after ? ["✗→✓", "fooled, repaired"] : before ? ["✓→✗", "broken by the method"] : ["✗", "fooled"];
      button.lastChild.textContent = mark;
      button.className = there ? (after ? "right" : "wrong") : "";
      button.title = `image ${each}: ${mine ? "own, " : ""}${nameOf(label)}; ${words}`;
      button.setAttribute("aria-label", button.title);
      button.setAttribute("aria-pressed", String(each === image));
    });
    slider.value = at;
    strength.textContent = fixed.eps[at];
    slider.setAttribute("aria-valuetext", `ε = ${fixed.eps[at]}`);
    method.value = name;
  }

  const message = make("span", { class: "nbs-message", role: "alert" }), status = make("span", { role: "status" });
  function state() {
    const { done = 0, waiting = 0, paused = 0, images = 0, error = "" } = model.get("progress") ?? {};
    const waits = open.size && Date.now() - open.waits > PATIENCE, all = model.get("images").length;
    const { image, method: name } = choice(), missing = ![ATTACKED, name].every((each) => pieces.get(`${image}/${each}`)?.data);
    if (error) attacking = false;
    const wrong = refusal || error;
    message.textContent = failure || ended || !wrong ? failure : `It did not work (${wrong}): ${paused ? "go on" : "choose something else"}, or run this cell again.`;
    status.textContent = !live ? `Computed in advance: every picture, and the kernels of every ${fixed.step === 1 ? "" : `${fixed.step}th `}pixel.`
      : ended ? `The kernel has ended or restarted: run this cell again${missing ? " to see this image." : " for other pixels, attacks and images. What was computed stays here."}`
      : waits ? "waiting for the kernel, which is busy …"
      : paused ? `stopped after ${images} of ${all} images (${done} of ${done + waiting + paused} pieces)`
      : waiting ? `computing: ${done} of ${done + waiting} …` : "";
    go.hidden = !live || ended || !(waiting || paused);
    go.textContent = paused ? "go on" : "stop";
    again.setAttribute("aria-busy", String(attacking));
    again.textContent = attacking ? "attacking …" : "recompute with PGD";
    again.hidden = upload.hidden = !live || ended;
  }

  const root = make("div", { class: "nbs", "data-lm-suppress-shortcuts": "true", keydown: (event) => event.stopPropagation() }, make("div", { class: "nbs-in" }, strip,
    make("div", { class: "nbs-controls" }, make("label", {}, "ε", slider, strength), play, make("label", {}, "method", method), again, upload),
    verdict, pictures,
    make("div", { class: "nbs-below" }, ...words.map(({ box }) => box), make("div", {}, pixel, kernels, kernelScale, owned),
      make("div", { class: "nbs-plot" }, count, curves, point, legend)),
    make("div", { class: "nbs-line" }, values, message, status, go)), dialog);
  el.append(root);
  for (const name of CHOICE) model.on(`change:${name}`, () => {
    if (chosen[name] === model.get(name)) return;
    chosen[name] = model.get(name);
    draw();
  });
  model.on("change:images", draw);
  model.on("change:progress", state);
  if (live) {
    model.on("msg:custom", hear);
    const { widget_manager: manager } = model;
    manager.get_model(model.get("upload").replace("IPY_MODEL_", "")).then(async (child) => {
      child.on("comm_live_update", () => { ended = !child.comm_live; state(); }); // as its parent
      upload.append((await manager.create_view(child)).el);
    });
    ask("hello");
  } else for (const [read, data] of model.get("pieces")) pieces.set(read.key.join("/"), { read, data });
  const resized = new ResizeObserver(() => plot());
  resized.observe(root);
  draw();
  return () => { resized.disconnect(); pause(); };
}

// One picture, and a slider for each argument that it was drawn for.
function browse(model, el) {
  const sliders = model.get("sliders"), frames = model.get("frames");
  const addresses = frames.map((data) => typeof data === "string" ? `data:image/png;base64,${data}` : URL.createObjectURL(new Blob([data], { type: "image/png" })));
  const picture = make("img");
  const rows = sliders.map(([name, labels], i) => {
    const input = make("input", { type: "range", min: 0, max: labels.length - 1, "aria-label": name, input: () => {
      model.set("places", model.get("places").map((place, j) => (j === i ? Number(input.value) : place)));
      model.save_changes();
    } });
    const readout = make("data");
    return { input, readout, row: make("label", {}, make("span", {}, name), input, readout) };
  });
  function draw() {
    const places = model.get("places"), at = places.reduce((sum, place, i) => sum * sliders[i][1].length + place, 0);
    const values = sliders.map(([name, labels], i) => `${name} = ${labels[places[i]]}`);
    picture.src = addresses[at];
    picture.alt = [values.join(", "), model.get("texts")[at]].filter(Boolean).join(": ");
    rows.forEach(({ input, readout }, i) => {
      input.value = places[i];
      input.setAttribute("aria-valuetext", values[i]);
      readout.textContent = sliders[i][1][places[i]];
    });
  }
  el.append(make("div", { class: "nbs nbs-sliders", "data-lm-suppress-shortcuts": "true", keydown: (event) => event.stopPropagation() }, ...rows.map(({ row }) => row), picture));
  model.on("change:places", draw);
  draw();
}

function render({ model, el }) {
  return model.get("fixed") ? explore(model, el) : browse(model, el);
}

function openPage(name) {
  const state = JSON.parse(document.getElementById(`${name}-state`).textContent);
  render({ model: new Page(state), el: document.getElementById(name) });
}

export default { render };
