// Draws what `explorer.py` looks up; nothing is computed on images here.
const SVG = "http://www.w3.org/2000/svg";
const PATIENCE = 700; // milliseconds until the screen says that it waits
const TOP = 5; // classes
const SLOTS = ["clean", "attacked", "perturbation", "denoised", "W", "uncertainty, sl", "uncertainty, m"];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function paint(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const bytes = picture.rgba;
  const pixels = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  canvas.getContext("2d").putImageData(new ImageData(pixels, picture.width, picture.height), 0, 0);
}

function frame(canvas, row, column) {
  const context = canvas.getContext("2d");
  context.strokeStyle = "#ff00ff";
  context.lineWidth = Math.max(1, canvas.width / 64);
  context.strokeRect(column - 0.5, row - 0.5, 2, 2);
}

function svg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function render({ model, el }) {
  const fixed = model.get("fixed");
  const nameOf = (label) => fixed.classes[label] ?? String(label);
  let patience;
  const choose = (changes) => {
    const changed = Object.entries(changes).filter(([name, value]) => model.get(name) !== value);
    for (const [name, value] of changed) model.set(name, value);
    if (!changed.length) return;
    model.save_changes();
    clearTimeout(patience);
    patience = setTimeout(() => { waiting.textContent = "waiting for the kernel, which is busy …"; }, PATIENCE);
  };

  const strip = make("div", { class: "nbs-strip", role: "group", "aria-label": "images" });
  fixed.thumbnails.forEach((picture, number) => {
    const canvas = make("canvas");
    paint(canvas, picture);
    const label = `image ${number}: ${nameOf(fixed.labels[number])}`;
    const button = make("button", { type: "button", title: label, "aria-label": label }, canvas);
    button.addEventListener("click", () => choose({ image: number }));
    strip.append(button);
  });

  const slider = make("input", { type: "range", min: 0, max: fixed.eps.length - 1, "aria-label": "attack strength ε" });
  const strength = make("output");
  slider.addEventListener("input", () => choose({ strength: Number(slider.value) }));
  const method = make("select", { "aria-label": "method" }, ...Object.keys(fixed.colours).map((name) => make("option", {}, name)));
  method.addEventListener("change", () => choose({ method: method.value }));
  const again = make("button", { type: "button", title: "PGD from another random start, now" }, "recompute with PGD");
  again.addEventListener("click", () => model.get("busy") || choose({ again: model.get("again") + 1 }));
  const controls = make("div", { class: "nbs-controls" },
    make("label", {}, "ε", slider, strength), make("label", {}, "method", method), again);
  const message = make("span", { class: "nbs-message", role: "alert" });
  const waiting = make("span", { role: "status" });

  const figures = make("div", { class: "nbs-pictures" });
  const canvases = Object.fromEntries(SLOTS.map((name) => {
    const picked = ["clean", "attacked", "denoised"].includes(name);
    const canvas = make("canvas", picked ? {
      class: "pick", tabindex: 0, role: "application",
      "aria-label": `${name} image; a click or the arrow keys choose the pixel whose kernels are shown`,
    } : { role: "img", "aria-label": name });
    if (picked) pick(canvas);
    const caption = make("figcaption", { title: name === "perturbation" ? "from −ε to ε; grey is none" : name }, name);
    figures.append(make("figure", {}, canvas, caption));
    return [name, { canvas, caption }];
  }));

  function pick(canvas) {
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (offset, length, number) => Math.min(number - 1, Math.max(0, Math.floor((offset / length) * number)));
      choose({
        column: place(event.clientX - box.left, box.width, canvas.width),
        row: place(event.clientY - box.top, box.height, canvas.height),
      });
    });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const inside = (value, number) => Math.min(number - 1, Math.max(0, value));
      choose({
        row: inside(model.get("row") + step[0], canvas.height),
        column: inside(model.get("column") + step[1], canvas.width),
      });
    });
  }

  const predictions = ["attacked", "denoised"].map((name) => {
    const list = make("div", { "aria-label": `predictions for the ${name} image` });
    return { name, list, box: make("div", { class: "nbs-words" }, make("h4", {}, name), list) };
  });
  const quality = make("small");
  const kernels = make("div", { class: "nbs-kernels" });
  const pixel = make("h4");
  const curves = svg("svg", { viewBox: "0 0 240 150", role: "img", "aria-label": "accuracy over ε" });
  predictions[1].box.append(quality);
  const below = make("div", { class: "nbs-below" }, ...predictions.map(({ box }) => box),
    make("div", {}, pixel, kernels), make("div", {}, make("h4", {}, "accuracy on these images"), curves));
  const root = make("div", { class: "nbs", "data-lm-suppress-shortcuts": "true" }, strip, controls,
    make("div", { class: "nbs-line" }, message, waiting), figures, below);
  // Without this, JupyterLab takes keys for its shortcuts: arrows move between headings.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);

  function rank(list, probabilities, truth) {
    const ranked = [...probabilities.entries()].sort(([, one], [, other]) => other - one).slice(0, TOP);
    list.replaceChildren(...ranked.map(([label, probability]) => {
      const bar = make("i", { style: `width: ${Math.round(100 * probability)}%` });
      return make("div", label === truth ? { class: "true" } : {}, nameOf(label), bar, probability.toFixed(2));
    }));
  }

  function plot() {
    const [left, right, top, bottom] = [28, 224, 6, 118];
    const last = fixed.eps.length - 1;
    const x = (number) => left + ((right - left) * number) / last;
    const y = (value) => bottom - (bottom - top) * value;
    const parts = [svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom })];
    for (const value of [0, 0.5, 1]) parts.push(svg("text", { x: 4, y: y(value) + 3 }, value.toFixed(1)));
    fixed.eps.forEach((label, number) => {
      if (number % 3 === 0) parts.push(svg("text", { x: x(number), y: bottom + 13, "text-anchor": "middle" }, label.split(" ")[0]));
    });
    const now = model.get("strength");
    parts.push(svg("line", { class: "axis", x1: x(now), x2: x(now), y1: top, y2: bottom, "stroke-dasharray": "3 2" }));
    for (const [name, values] of Object.entries(model.get("curves"))) {
      const chosen = name === model.get("method");
      const points = values.map((value, number) => `${x(number)},${y(value)}`).join(" ");
      const colour = name === "attacked" ? "currentColor" : fixed.colours[name];
      parts.push(svg("polyline", { class: "curve", points, stroke: colour, "stroke-width": chosen ? 3 : 1.2 }));
      if (chosen) parts.push(svg("circle", { cx: x(now), cy: y(values[now]), r: 4.5, fill: colour }),
        svg("text", { x: left, y: 146 }, `${name}: ${values[now].toFixed(2)} at ε = ${fixed.eps[now].split(" ")[0]}`));
    }
    curves.replaceChildren(...parts);
  }

  function draw() {
    const shown = model.get("shown");
    if (!shown.pictures) return;
    const [row, column] = [model.get("row"), model.get("column")];
    const uncertainty = shown.pictures.uncertainty;
    for (const [name, { canvas, caption }] of Object.entries(canvases)) {
      const alone = name === "uncertainty, sl" && uncertainty;
      const picture = alone ? uncertainty : shown.pictures[name];
      const text = alone ? "uncertainty" : name;
      caption.textContent = picture ? text : `no ${text.replace("uncertainty, ", "uncertainty ")}`;
      if (!picture) { canvas.width = canvas.height = 1; continue; }
      paint(canvas, picture);
      if (canvas.classList.contains("pick")) frame(canvas, row, column);
    }
    predictions.forEach(({ list }, place) => rank(list, shown.probabilities[place], shown.label));
    quality.replaceChildren(...predictions.flatMap(({ name }, place) =>
      [`${name}: ${shown.quality[place].replace("inf", "∞")}`, make("br")]));
    pixel.textContent = `kernels of pixel (${row}, ${column})`;
    kernels.replaceChildren(...shown.kernels.map((part) => {
      const drawn = part.kernels.map((picture, channel) => {
        const canvas = make("canvas", { role: "img", title: `sum of taps ${part.sums[channel]}`,
          "aria-label": `kernel of the ${["red", "green", "blue"][channel]} channel, sum of taps ${part.sums[channel]}` });
        paint(canvas, picture);
        return canvas;
      });
      return make("div", {}, make("span", {}, part.name), ...drawn);
    }));
    if (!shown.kernels.length) kernels.append("this method has no kernels");
    plot();
  }

  function state() {
    [...strip.children].forEach((button, number) => button.setAttribute("aria-pressed", String(number === model.get("image"))));
    slider.value = model.get("strength");
    strength.textContent = fixed.eps[model.get("strength")];
    slider.setAttribute("aria-valuetext", fixed.eps[model.get("strength")]);
    method.value = model.get("method");
    again.setAttribute("aria-busy", String(model.get("busy")));
    again.textContent = model.get("busy") ? "attacking …" : "recompute with PGD";
    message.textContent = model.get("message");
  }

  model.on("change:answers", () => { clearTimeout(patience); waiting.textContent = ""; });
  model.on("change:shown", draw);
  model.on("change:curves", plot);
  for (const name of ["image", "strength", "method", "busy", "message"]) model.on(`change:${name}`, state);
  state();
  draw();
}

export default { render };
