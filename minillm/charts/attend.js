// Keys, touches, and the page around a player; returns how to leave them alone again.
export function attend(one) {
  const { el } = one.root, { state } = one;
  const keys = {
    " ": () => one.toggle(), ArrowLeft: () => one.step(-1), ArrowRight: () => one.step(1),
    Home: () => one.seek(0), End: () => one.seek(Infinity),
  };
  el.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    const onButton = event.target.closest("button") && (event.key === " " || event.key === "Enter");
    if (event.key !== "Escape") event.stopPropagation(); // not for the notebook
    const own = event.target.closest("[data-keys=own]"); // a view that has keys of its own
    if (onButton || own || state.live || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  const touched = (event) => { // a replay that began by itself ends at any touch
    if (!state.auto || event.target.closest(".minillm-play") || event.key === " ") return;
    one.stop();
    one.ask();
  };
  el.addEventListener("keydown", touched, true);
  el.addEventListener("pointerdown", touched, true);
  const alone = (event) => { if (event.detail !== one && state.auto) one.seek(Infinity); };
  document.addEventListener("minillm-play", alone); // one replay at a time moves by itself
  const seen = new IntersectionObserver((all) => {
    one.visible = all.at(-1).isIntersecting;
    one.ask();
  });
  const sized = new ResizeObserver(() => { one.measure(); one.ask(); });
  seen.observe(el);
  sized.observe(el);
  return () => {
    [seen, sized].forEach((observer) => observer.disconnect());
    document.removeEventListener("minillm-play", alone);
  };
}
