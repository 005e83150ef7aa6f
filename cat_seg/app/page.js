// The picture answers to the pointer, and to the arrow keys: name and probability of a pixel.
// Each figure.catseg brings them as a picture of values, see cat_seg/app/view.py.
(() => {
  const STEP = 0.01; // of the picture's width, for an arrow key
  const values = new WeakMap(); // figure -> its values, read once

  function read(figure) {
    if (!values.has(figure)) {
      const picture = new Image();
      picture.src = figure.dataset.values;
      values.set(
        figure,
        picture.decode().then(() => {
          const canvas = document.createElement("canvas");
          canvas.width = picture.width;
          canvas.height = picture.height;
          const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
          context.drawImage(picture, 0, 0);
          return {
            names: JSON.parse(figure.dataset.names),
            pixels: context.getImageData(0, 0, canvas.width, canvas.height),
          };
        }),
      );
    }
    return values.get(figure);
  }

  // u, v: where in the picture, 0 to 1.
  async function show(figure, u, v) {
    figure.at = [u, v];
    const { names, pixels } = await read(figure);
    const x = Math.min(pixels.width - 1, Math.floor(u * pixels.width));
    const y = Math.min(pixels.height - 1, Math.floor(v * pixels.height));
    const [high, low, percent] = pixels.data.slice(4 * (y * pixels.width + x));
    const label = 256 * high + low - 1;
    const tip = figure.querySelector(".catseg-tip");
    tip.textContent = label < 0 ? `none of these (best ${percent} %)` : `${names[label]} ${percent} %`;
    tip.style.left = `${100 * u}%`;
    tip.style.top = `${100 * v}%`;
    tip.classList.toggle("catseg-left", u > 0.6);
    tip.hidden = false;
  }

  const figureOf = (event) => event.target.closest?.("figure.catseg");

  document.addEventListener("pointermove", (event) => {
    const figure = figureOf(event);
    for (const tip of document.querySelectorAll(".catseg-tip"))
      if (!figure || !figure.contains(tip)) tip.hidden = true;
    if (!figure) return;
    const box = figure.querySelector("img").getBoundingClientRect();
    const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (u >= 0 && u < 1 && v >= 0 && v < 1) show(figure, u, v);
  });

  document.addEventListener("keydown", (event) => {
    const figure = figureOf(event);
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!figure || !move) return;
    event.preventDefault();
    const step = event.shiftKey ? 10 * STEP : STEP;
    const [u, v] = (figure.at ?? [0.5, 0.5]).map((at, i) =>
      Math.min(0.999, Math.max(0, at + step * move[i])),
    );
    show(figure, u, v);
  });
})();
