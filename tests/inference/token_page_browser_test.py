"""The page of token maps in a real browser, without a window: Debian's Chromium and its driver."""

import json
import shutil
import socket

import numpy as np
import pytest

from evovit_jax.inference import token_page
from evovit_jax.inference.token_history import TokenHistory
from evovit_jax.inference.token_page import Network, SeenImage

pytestmark = [pytest.mark.browser]
BLOCKS, GRID = 4, (4, 4)
SCRIPT = "</script><img src=x onerror='window.ran = 1'><script>window.ran = 1</script>"
ATTRIBUTE = "\" onload='window.ran = 1' onfocus='window.ran = 1' x=" + "x" * 300
CLASS_NAMES = ["goldfish", SCRIPT, "tench"]
NETWORKS = [
    Network("none", 1.26),
    Network("evit,keep_rate=0.7", 0.82),
    Network("evit,keep_rate=0.5", 0.63),
    Network("tome,r=2", 0.9),
]
ALL = np.arange(17, dtype=np.int32)


def history(last, answer, random, *, attends=True):
    """The first two blocks have every token, the others the map `last`."""
    maps = np.stack([ALL, ALL, last, last]).astype(np.int32)
    attention = random.random((BLOCKS, 16), np.float32) if attends else [None] * BLOCKS
    logits = np.zeros(3, np.float32)
    logits[answer] = 3
    return TokenHistory(logits, maps, GRID, tuple(attention))


def seen_image(name, seed, **kind):
    random = np.random.default_rng(seed)
    photograph = random.integers(0, 255, (8, 8, 3), np.uint8).repeat(28, 0).repeat(28, 1)
    some, few = np.where(ALL < 12, ALL, -3), np.where(ALL < 9, ALL, -3)
    merged = np.where(ALL < 9, ALL, 9 + ALL % 2)
    lasts = ((ALL, 0), (some, 0), (few, 1), (merged, 1))
    return SeenImage(name, photograph, [history(m, a, random, **kind) for m, a in lasts])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a page whose names are hostile, of three images; the last has no class token."""
    images = [seen_image(SCRIPT, 0), seen_image(ATTRIBUTE, 1)]
    images.append(seen_image("without", 2, attends=False))
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(token_page.page(SCRIPT, NETWORKS, images, CLASS_NAMES), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver  # only these tests need it

    there = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(there.values()), "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = there["chromium"]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(there["chromedriver"])
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


class Page:
    """The page in the browser, and what a reader does with it."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.resize(1200)
        self.dark(False)
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what other tests have left there
        browser.get(address)
        self.ready()

    def ready(self):
        from selenium.webdriver.support.ui import WebDriverWait

        is_ready = "return 'ready' in document.documentElement.dataset"
        WebDriverWait(self.browser, 20).until(lambda browser: browser.execute_script(is_ready))

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def drawn(self):
        """All pixels of the large picture."""
        return self.run("return document.getElementById('picture').toDataURL()")

    def pixel(self, patch):
        """Red, green and blue in the middle of a patch."""
        script = """
            const [x, y] = [arguments[0] % 4, Math.floor(arguments[0] / 4)];
            const copy = Object.assign(document.createElement('canvas'), {width: 4, height: 4});
            const context = copy.getContext('2d'), picture = document.getElementById('picture');
            const step = picture.width / 4;
            context.drawImage(picture, (x + 0.5) * step, (y + 0.5) * step, 4, 4, 0, 0, 4, 4);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);"""
        return np.array(self.run(script, patch))

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def choose(self, place, text):
        """Clicks the button of that text."""
        for label in self.browser.find_elements("css selector", f"#{place} label"):
            if label.text == text:
                label.click()
                return
        raise AssertionError(f"{place} has no {text}")

    def chosen(self, place):
        script = """return document.querySelector(`#${arguments[0]} :checked`)
            .closest('label').textContent"""
        return self.run(script, place).strip()

    def command(self, name, **values):
        return self.browser.execute_cdp_cmd(name, values)

    def resize(self, width):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def dark(self, is_dark):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self):
        """All addresses that were asked for, but for those in the page itself."""
        events = (json.loads(e["message"])["message"] for e in self.browser.get_log("performance"))
        asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in asked]
        return [url for url in urls if not url.startswith("data:")]


@pytest.fixture
def page(browser, address):
    """After the test, nothing was complained about and nothing was fetched but the page."""
    page = Page(browser, address)
    yield page
    assert page.errors() == []
    assert page.requests() == [address]
    assert page.run("return window.ran") is None


def test_it_opens_with_the_last_block_of_the_first_reduction(page):
    assert page.chosen("methods") == "EViT"
    assert page.chosen("settings") == "keep rate = 0.7"
    assert page.text("#status") == "Block 3: 11 of 16 patches kept, 5 dropped"
    assert page.text("#kept") == "11of 16"
    assert page.text("#cost") == "0.820GMACs, −35 %"


def test_the_slider_goes_through_the_blocks(page):
    from selenium.webdriver.common.keys import Keys

    last = page.drawn()
    slider = page.find("#block")
    slider.send_keys(Keys.ARROW_LEFT)
    assert page.text("#status") == "Block 2: 11 of 16 patches kept, 5 dropped"
    assert page.drawn() == last
    slider.send_keys(Keys.ARROW_LEFT)
    assert page.text("#status") == "Block 1: 16 of 16 patches kept"
    assert slider.get_attribute("aria-valuetext") == "block 1, 16 tokens of patches"
    whole = page.drawn()
    assert whole != last
    page.find("#layers button:nth-child(4)").click()
    assert page.text("#number") == "3 of 3"
    assert page.drawn() == last
    page.press(Keys.HOME)
    page.run("document.activeElement.blur()")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert page.text("#number") == "1 of 3"
    assert page.drawn() == whole


def test_methods_and_settings_are_switched(page):
    seen = {page.drawn()}
    page.choose("settings", "keep rate = 0.5")
    assert page.text("#status") == "Block 3: 8 of 16 patches kept, 8 dropped"
    assert page.text("#reduced h3") == "EViT, keep rate = 0.5"
    assert page.text("#agreement") == "They give different answers."
    seen.add(page.drawn())
    page.choose("methods", "ToMe")
    assert page.text("#status") == "Block 3: 8 of 16 patches kept, 8 merged into 2"
    assert page.chosen("settings") == "r = 2"
    seen.add(page.drawn())
    page.choose("methods", "Dense")
    assert page.text("#status") == "Block 3: 16 of 16 patches kept"
    assert not page.find("#rates").is_displayed()
    assert not page.find("#reduced").is_displayed()
    seen.add(page.drawn())
    assert len(seen) == 4
    page.choose("methods", "EViT")
    assert page.chosen("settings") == "keep rate = 0.5"  # as it was left


def test_predictions_stand_beside_the_dense_networks(page):
    shares = np.exp([3, 0, 0]) / np.exp([3, 0, 0]).sum()
    expected = f"goldfish{100 * shares[0]:.1f} %"
    assert page.text("#reduced li .answer") == page.text("#dense li .answer") == expected
    assert page.text("#agreement") == "Both give the same answer."
    width = page.run("""const bar = document.querySelector('#dense .bar');
        return bar.firstChild.offsetWidth / bar.offsetWidth""")
    assert width == pytest.approx(shares[0], abs=0.01)


def test_the_keyboard_alone_does(page):
    page.press("m")
    assert page.chosen("methods") == "ToMe"
    page.press("m")
    assert page.chosen("methods") == "Dense"
    page.press("M", "M")
    assert page.chosen("methods") == "EViT"
    page.press("r")
    assert page.chosen("settings") == "keep rate = 0.5"
    page.press("i")
    assert page.text("#name") == ATTRIBUTE
    page.press("I", "I")
    assert page.text("#name") == "without"
    page.press("i", "a")
    assert page.chosen("views") == "Class attention"


def test_the_focus_is_seen_wherever_it_is(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visited = []
    for _ in range(5):
        page.press(Keys.TAB)
        visited.append(page.run("return document.activeElement.name || document.activeElement.id"))
        outline = page.run("""const focused = document.activeElement;
            const shown = focused.type !== 'radio' ? focused : focused.name === 'image'
              ? focused.nextElementSibling : focused.closest('label');
            return getComputedStyle(shown).outlineStyle""")
        assert outline == "solid"
    assert visited == ["block", "image", "method", "setting", "view"]
    before = page.drawn()
    back = ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT)
    back.perform()  # from the view to the setting
    page.press(Keys.ARROW_RIGHT)
    assert page.chosen("settings") == "keep rate = 0.5"
    assert page.drawn() != before


def test_dropped_patches_fade_into_the_page_light_or_dark(page):
    light = page.pixel(15)
    assert (light > 200).all()
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    page.dark(True)
    assert page.run("return getComputedStyle(document.body).backgroundColor") != ground
    page.run("return new Promise((done) => requestAnimationFrame(() => done()))")
    assert (page.pixel(15) < 60).all()
    kept = page.pixel(0)
    page.dark(False)
    np.testing.assert_array_equal(page.pixel(0), kept)


def test_class_attention_is_a_heat_map_where_there_is_a_class_token(page):
    from selenium.webdriver.common.keys import Keys

    tokens = page.drawn()
    page.choose("views", "Class attention")
    page.run("document.activeElement.blur()")
    heat = page.drawn()
    assert heat != tokens
    assert page.find("#legend-attention").is_displayed()
    assert (page.pixel(15) > 250).all()  # it left at block 2
    page.press(Keys.ARROW_LEFT)
    assert (page.pixel(15) < 250).any()  # where it was attended to
    page.press("r")
    assert page.drawn() != heat
    page.press("i", "i")
    assert page.chosen("views") == "Tokens"
    assert page.find("#missing").is_displayed()
    assert not page.find("#views label:nth-child(2) input").is_enabled()


def test_a_patch_says_what_became_of_it(page):
    from selenium.webdriver.common.action_chains import ActionChains

    plain, picture = page.drawn(), page.find("#picture")
    half = picture.size["width"] / 2 - 10
    ActionChains(page.browser).move_to_element_with_offset(picture, half, half).perform()
    assert page.text("#patch").startswith("Row 3, column 3: dropped at block 2, class attention ")
    assert page.drawn() != plain
    ActionChains(page.browser).move_to_element(page.find("h1")).perform()
    assert page.drawn() == plain


def test_names_are_text(page):
    """The scripts in them have not run, which the fixture checks."""
    assert page.text("#name") == SCRIPT
    assert page.text(".model") == SCRIPT
    assert page.run("return document.title") == f"Tokens of {SCRIPT}"
    page.press("i")
    assert page.text("#name") == ATTRIBUTE
    page.choose("settings", "keep rate = 0.5")
    assert page.text("#reduced li .answer span") == SCRIPT
    assert page.run("return document.scripts.length") == 2


def test_everything_has_a_text_for_those_who_do_not_see_it(page):
    images = page.run("return [...document.images].map((image) => image.alt)")
    assert images == [SCRIPT, ATTRIBUTE, "without"]
    first = page.find("#picture").get_attribute("aria-label")
    assert first.startswith(f"{SCRIPT}, tokens, EViT, keep rate = 0.7. Block 3: 11 of 16")
    page.press("m")
    assert page.find("#picture").get_attribute("aria-label") != first
    for element in page.browser.find_elements("css selector", "input, button, canvas[role]"):
        assert element.accessible_name, element.get_attribute("outerHTML")


@pytest.mark.parametrize("width", [400, 700, 1200])
def test_nothing_overflows(page, width):
    page.resize(width)
    page.press("i")  # the name that is 350 characters without a space
    page.choose("settings", "keep rate = 0.5")
    assert page.run("return document.documentElement.scrollWidth") <= width
    over = page.run("""return [...document.body.querySelectorAll('*')]
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5)
        .map((element) => element.outerHTML.slice(0, 200))""")
    assert over == []


def test_nothing_else_may_run_or_be_fetched(browser, address):
    page = Page(browser, address)
    refused = """
        const refused = [], outside = arguments[0];
        document.addEventListener('securitypolicyviolation',
          (event) => refused.push(event.effectiveDirective));
        const image = document.createElement('img');
        image.src = `${outside}/x.png`;
        const script = document.createElement('script');
        script.textContent = 'window.ran = 1';
        document.body.append(image, script);
        document.body.insertAdjacentHTML('beforeend', '<b onclick="window.ran = 1">x</b>');
        document.body.lastChild.click();
        return fetch(outside).then(() => ['fetched'],
          () => new Promise((done) => setTimeout(() => done(refused), 200)));"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = page.run(refused, f"http://127.0.0.1:{server.getsockname()[1]}")
        assert {"img-src", "script-src-elem", "script-src-attr", "connect-src"} <= set(found)
        assert page.run("return window.ran") is None
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
