// What the tests measure in a page; every page of theirs loads this first.

// A text that stands for a picture's pixels. A widget's image has a new address whenever it is set; while it is being
// set it has no pixels.
window.pixels = async (element) => {
  if (element instanceof HTMLImageElement && await element.decode().catch(() => "set")) return "";
  const bitmap = await createImageBitmap(element), { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const digest = await crypto.subtle.digest("SHA-256", context.getImageData(0, 0, width, height).data);
  return [width, height, ...new Uint8Array(digest)].join(" ");
};

// Keeps in `seen` all that a button shows from now on.
window.watch = (button) => {
  window.seen = [];
  const look = () => window.seen.push(`${button.ariaBusy} ${button.textContent}`);
  new MutationObserver(look).observe(button, { attributes: true, childList: true });
};

// The place of everything that may not jump: all but what grows with its text.
window.boxes = (root) => [root, ...root.querySelectorAll("*")]
  .filter((each) => !each.matches(":is(.nbs-words, .nbs-kernels, svg) *, option, small"))
  .map((each) => {
    const { x, y, width, height } = each.getBoundingClientRect();
    return [each.tagName, each.className, x, y, width, height].join(" ");
  }).join("\n");

// What does not fit into its place.
window.cut = (root) => [root, root.closest(".jp-OutputArea") ?? document.body, ...root.querySelectorAll("*")].filter((each) =>
  each.clientWidth && each.scrollWidth > each.clientWidth ||
  root.contains(each) && each.getBoundingClientRect().right > root.getBoundingClientRect().right
).map((each) => each.outerHTML.slice(0, 100));

// The smallest size of a text.
window.smallest = (root) => Math.min(...[...root.querySelectorAll("*")]
  .filter((each) => [...each.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()) && each.checkVisibility())
  .map((each) => parseFloat(getComputedStyle(each).fontSize)));

// WCAG's contrast of the last of layers of colours with those before.
window.contrast = (layers, top) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (layers) => {
    for (const [colour, opacity] of layers) {
      Object.assign(context, { globalAlpha: opacity, fillStyle: colour });
      context.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [dark, light] = [luminance(layers), luminance([...layers, top])].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
window.styles = (each) => {
  const styles = [];
  for (let above = each; above; above = above.parentElement) styles.unshift(getComputedStyle(above));
  return styles;
};
const paper = (styles) => [[matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "white", 1], ...styles.map((style) => [style.backgroundColor, 1])];

// For each element with text: the contrast of its colour with the background.
window.contrasts = (root) => {
  const text = (each) => [...each.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...root.querySelectorAll("*")].filter((each) => text(each) && each.checkVisibility()).map((each) => {
    const styles = window.styles(each), opacity = styles.reduce((product, style) => product * Number(style.opacity), 1);
    const colour = each instanceof SVGElement ? styles.at(-1).fill : styles.at(-1).color;
    return [each.textContent, window.contrast(paper(styles), [colour, opacity])];
  });
};

// The same for each line of the plot.
window.lines = (root) => [...root.querySelectorAll(".curve polyline")].map((each) => {
  const styles = window.styles(each);
  return [styles.at(-1).stroke, window.contrast(paper(styles), [styles.at(-1).stroke, 1])];
});
