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
window.cut = (root) => [root, root.closest(".jp-OutputArea"), ...root.querySelectorAll("*")].filter((each) =>
  each.clientWidth && each.scrollWidth > each.clientWidth ||
  root.contains(each) && each.getBoundingClientRect().right > root.getBoundingClientRect().right
).map((each) => each.outerHTML.slice(0, 100));

// For each element with text: the contrast of its colour with the background, as WCAG defines it.
window.contrasts = (root) => {
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
  const text = (each) => [...each.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...root.querySelectorAll("*")].filter((each) => text(each) && each.checkVisibility()).map((each) => {
    const styles = [];
    for (let above = each; above; above = above.parentElement) styles.unshift(getComputedStyle(above));
    const behind = [["white", 1], ...styles.map((style) => [style.backgroundColor, 1])];
    const opacity = styles.reduce((product, style) => product * Number(style.opacity), 1);
    const colour = each instanceof SVGElement ? styles.at(-1).fill : styles.at(-1).color;
    const [dark, light] = [luminance(behind), luminance([...behind, [colour, opacity]])].sort((a, b) => a - b);
    return [each.textContent, (light + 0.05) / (dark + 0.05)];
  });
};
