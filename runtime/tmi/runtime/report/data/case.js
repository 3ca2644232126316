"use strict";
(() => {
  const planes = JSON.parse(document.getElementById("slices").textContent);
  const slider = document.getElementById("slice");
  const ct = document.getElementById("ct"), map = document.getElementById("map");
  const status = document.getElementById("told"), stage = document.getElementById("stage");
  const positions = {};
  let name = "axial";

  function show() {
    const plane = planes[name], position = Number(slider.value), slice = plane.slices[position];
    positions[name] = position;
    ct.src = slice.ct;
    map.src = slice.map;
    const text = `${name} slice ${slice.number} of ${plane.of}`;
    ct.alt = `CT, ${text}; the patient's ${side[plane.marks[0]]} is on the left`;
    slider.setAttribute("aria-valuetext", text);
    status.textContent = text;
  }
  const side = { R: "right", A: "front" };

  function setPlane(to) {
    name = to;
    const plane = planes[name];
    slider.max = plane.slices.length - 1;
    slider.value = name in positions ? positions[name] : plane.start;
    ct.width = plane.width;
    ct.height = plane.height;
    stage.style.aspectRatio = `${plane.width} / ${plane.height}`;
    ["left", "right", "top", "bottom"].forEach((where, i) => {
      stage.querySelector(`.mark.${where}`).textContent = plane.marks[i];
    });
    const scale = stage.querySelector(".scale");
    scale.style.width = `${plane.bar_percent}%`;
    scale.textContent = `${plane.bar_mm} mm`;
    show();
  }

  slider.addEventListener("input", show);
  document.querySelectorAll("input[name=plane]").forEach((radio) => {
    radio.addEventListener("change", () => setPlane(radio.value));
  });
  document.getElementById("show-map").addEventListener("change", (event) => {
    map.hidden = !event.target.checked;
  });
  setPlane(name);
})();
